"""Models as they lie on disks: safetensors, files of `torch.save`, Hugging Face folders, and LoRA adapters."""
