"""Mutated inputs, random models, and kills, by a seed: `python -m tests.fuzz --seed S --count N [--upstream]`, `--kills N`.

- `originals`: the inputs that are mutated: pictures in every format that Pillow writes, checkpoints, a pack, a port's files.
- `mutations`: what is done to bytes and to JSON.
- `cases`: a kind of input each: what is made of the originals, and the command that reads it.
- `corpora`, `archives`, `servers`: kinds that a stranger made; `kinds`: all of them, and how often each comes.
- `watch`: what a case opens, alters and connects to, which must be nothing but what its call names.
- `calls`: hostile arguments to public functions.
- `runner`: a child per case, under limits, and the verdict on how it ended.
- `upstream`: random models and pictures, beside transformers' own answers.
- `kills`: signals at random moments over commands that write.
"""
