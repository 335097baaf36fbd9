"""The simulators that made the embedded data set, and the policies that act in them."""
