"""Runs → one self-contained HTML page.

markup      HTML in which every string is escaped
shown       numbers and records as people read them
charts      line charts and calibration diagrams as SVG
texts       raw texts of a corpus, found by their keys
figures     what a run has on disk, however old it is
errors      the texts that a run was most wrong about
sections    the parts of a page that tell of one run
comparison  the parts that put runs side by side
page        all of it together
"""
