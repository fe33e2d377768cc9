"""Files: safetensors read in blocks or streamed out, and writes that leave the old file or the new one, never half."""
