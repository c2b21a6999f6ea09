"""What a document cannot say to schemathesis."""

import schemathesis


@schemathesis.hook
def map_query(context, query):
    """A dry run makes and removes nothing, so that what it names is there, or not, as before: no check expects that."""
    if query and query.get("dry_run") in (True, "true"):
        query = {name: value for name, value in query.items() if name != "dry_run"}
    return query


@schemathesis.hook
def filter_headers(context, headers):
    """Headers that nobody knows are passed over (RFC 9110, section 5.1), and make no request invalid."""
    return "x-schemathesis-unknown-property" not in (name.lower() for name in headers or {})
