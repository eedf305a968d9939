"""Images in registries: the OCI distribution protocol, and what makes a download fast and safe.

`source` describes an image; `client` speaks to one repository, over `transport`, with the authorization of `auth` for
the user that `credentials` finds; `download` gets blobs over several connections, into memory or into the `cache` that
processes share. Nothing here is loaded for local images.
"""
