"""What a GPU says of this project: one command, several parts. See README.md beside this file."""
