"""How a router is trained: `text` gives documents, `teacher` says what a reader looked at, `forms`
hold what is learnt, `student` attends through it, `loop` trains. Source of the published form:
SeKV (arXiv 2606.31145), sections 3.3 and 3.4."""
