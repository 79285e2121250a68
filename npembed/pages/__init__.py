"""Pages to look at: how a picture becomes numbers, where the rules differ, the article's figures, a port's report.

Each page is one HTML file that asks for nothing beside it. The numbers on it are the arrays' own: Python puts what the
functions returned into the page, and the page's script only shows it. `page` fills the templates, `drawing` turns arrays
into pictures and text, and each page has a module: `explain` (its words in
`steps`), `rules`, `article`, `report`, `corpus`.
"""
