"""How deep must safety alignment go, and what does width buy instead?

Two wings and a landing. ``safetylib.chain`` is the mathematics (numpy and scipy only), ``safetylib.proofs``
checks it symbolically, ``safetylib.study`` measures it on a real model; ``stats``, ``figures`` and ``claims``
serve both. Importing this package imports none of them.
"""

__version__ = "0.1.0"
