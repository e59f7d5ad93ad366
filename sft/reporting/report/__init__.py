"""The report of a run: `report.html` and `report.md`.

Three layers: `records.ReportRecords` is what is known about a run; `facts.find_facts`, with `verdicts/`, `curves` and
`usage`, turns it into sentences, tables and curves by fixed rules; `html_page.report_html` and
`markdown_page.report_markdown` render these facts with the templates in `templates/`. `svg` draws the curves.

The first two layers must not know HTML or Markdown; the last must not know a run's records.
"""
