"""What an experiment needs of a TPU slice, found out without one: its own programs compiled for the slice's topology on
a CPU, their memory and communication read off, time and money estimated from them.
"""
