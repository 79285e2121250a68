"""Where a model's arrays come from: a folder, a GGUF file, the Hub, any URL; one interface, a module per kind of source.

- `source`: the interface, and what every kind of source shares.
- `safetensors_header`: the names, types and places of the arrays in a safetensors file, from the file's first bytes.
- `gguf`, `gguf_names`: mmproj files of llama.cpp.
- `ranges`: parts of files over HTTP, checked.
- `hub`: a repository of the Hugging Face Hub, and the cache of what was read from it.
- `url`: a folder or a file at any URL.
"""
