"""The demo: handwritten digits, three sources, a few planted wrong labels."""
