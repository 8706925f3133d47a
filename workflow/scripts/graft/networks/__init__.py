"""Networks, each saved and loaded as diffusers models are."""

LOADING = {"local_files_only": True, "use_safetensors": True, "low_cpu_mem_usage": False}
"""How `from_pretrained` is called: no hub, no pickle, no advice to install accelerate."""
