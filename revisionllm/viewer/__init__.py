"""Views of one film's predictions: an HTML page to click through and a PNG to put in a report.

    page.py        `write_view`: one self-contained HTML file that plays the film from disk
    timeline.py    `write_timeline`: a PNG with a row per sentence
    facts.py       what both say about a prediction: verdict, truth, cost
    assets/        the page as a Jinja template, its style and script
    thumbnails.py  frames of the film at the moments
    axis.py        round ticks

Both take the `Prediction` objects of `revisionllm.records.predictions`, all of one film.
"""
