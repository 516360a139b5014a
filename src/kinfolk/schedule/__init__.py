"""Schedule laws: what a learning-rate schedule will end at, fitted to cheap runs.

A schedule (`shapes`, `sources`) becomes blocks (`blocks`), blocks become features or changes of the rate (`features`,
`changes`), runs become targets (`runs`), and a law of some kind (`kinds`) is fitted, chosen and calibrated (`fitted`);
`rank` then compares candidates.
"""
