"""Progress (`status`) and the HTML report."""
