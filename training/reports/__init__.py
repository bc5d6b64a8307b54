"""HTML pages: the evaluation report, the review, the evidence for a class, seeds by stage; and the model card."""
