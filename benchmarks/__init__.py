"""Speed, as ratios against a named peer: the same work in the same run, peer and ours in turn, medians.

    python -m benchmarks                   all of them; stores the ratios and writes the book's table
    python -m benchmarks.loading           transformers reading a GGUF file against one conversion
    python -m benchmarks.training_step     transformers.Trainer against safetylib.study.train
    python -m benchmarks.depth_curve       Hugging Face generate at every depth against one pass and its branches
    python -m benchmarks.generation        generate on a padded batch, and adapters in turn, against ours
    python -m benchmarks.judge             a judge that generates its verdict against one that reads it off the logits
    python -m benchmarks.chains            PyDTMC and iteration against one solve and closed forms

Each prints the two medians and their ratio, and checks first that both sides do the same work. Ratios hold for the machine
they were taken on. Nothing here is imported by the library, and no test asserts a time.
"""
