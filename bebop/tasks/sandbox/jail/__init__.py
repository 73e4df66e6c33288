"""What runs inside the sandbox's process. Imports the standard library alone: it is started by a bare interpreter."""
