"""The bundle by which Flower starts the coordinator; its code is installed with the hub."""
