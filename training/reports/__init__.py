"""HTML pages: the evaluation report, the evidence for a class, seeds by stage; see ``templates``."""
