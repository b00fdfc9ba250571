"""Parameters: from files to the devices, and which device holds what."""
