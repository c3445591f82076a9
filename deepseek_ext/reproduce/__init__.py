"""The claims of the paper that a CPU can show, each a small experiment with a figure and a pass mark."""
