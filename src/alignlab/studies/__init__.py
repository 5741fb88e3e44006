"""Studies: a claim from a paper, the experiment that tests it at three scales, and the verdict, whichever it is."""
