"""Running workflows without the page: here or on a ComfyUI server, from the command line."""
