"""Training code that ships with fedhub. Read catalogue, rows, loop, then one recipe.

A recipe is a module with a torch model and what it reads; its digest (``federation.plan.build_recipe``)
covers every file that decides the result. Only ``catalogue`` may be imported where there is no torch.
"""
