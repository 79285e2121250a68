"""Where a model's arrays come from: a folder, a GGUF file, the Hub, any URL; one interface, a module per kind of source.

- `source`: the interface, and what every kind of source shares.
- `safetensors_header`: the names, types and places of the arrays in a safetensors file, from the file's first bytes.
- `ranges`: parts of files, on this machine or over HTTP, checked.
- `gguf`: the container of llama.cpp; `mmproj`, `gguf_names`, `gguf_config`: its vision towers as a source.
- `remote`: a checkpoint's folder that is somewhere else. `hub`, `cache`: a repository of the Hugging Face Hub, and what is kept
  of it.
- `url`: a folder or a file at any URL.
"""
