"""What is written down of names, versions and layouts, and told to those who follow."""
