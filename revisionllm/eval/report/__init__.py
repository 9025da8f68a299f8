"""Tables, figures and the page that compare predictions."""
