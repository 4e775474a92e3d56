"""What the machine's graphics cards and memory say. Providers: NVML, and none with the reason."""
