"""What traffic will launch, found out before it comes: steps of all kinds are planned, and run on a device
that computes nothing. The kernels that they ask for are compiled by other processes while weights are read.
"""
