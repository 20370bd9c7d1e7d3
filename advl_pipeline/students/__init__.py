"""Vision-language models behind one adapter.

In: `Example` records. Out: text states with character spans, visual states with boxes, a pooled state, task logits.
A new student is one file and its facts in `data/students.toml`, or an entry point `advl.students`.
May not know: where teacher features come from or how the loss uses them.
"""
