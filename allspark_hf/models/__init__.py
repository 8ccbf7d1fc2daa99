"""Models: configuration, network, conversion of published weights, loading, registration with transformers.

Files whose names end in `_allspark` travel with every published model, so they import nothing else of this package.
"""
