"""One forward for rows with different stacks: `y = W x + sum_i a_i s_i B_i (A_i x)`, exactly, for every row its own.

sites.py      the linear layers of a model, and which of them read the same input
families.py   adapters of one shape, side by side in one slab
residents.py  all adapters in memory; a handle names one
products.py   what is added to a layer's output
plan.py       one batch: the order of its rows, and the weights that they need, gathered once
forward.py    hooks on the model's linear layers that add a plan's products
scores.py     batches by length through a reward model
reference.py  the same, one row and one adapter at a time: slow and obvious
"""
