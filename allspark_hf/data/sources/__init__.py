"""Where images come from: an own folder, published data sets, lists of ids, the Hub, streams."""
