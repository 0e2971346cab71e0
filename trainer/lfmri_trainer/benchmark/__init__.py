"""The paper's Table 1 and Figures 4 and 5, rebuilt from pairs: test sets, scores, intervals, tables and figures."""
