"""A package, so that what its tests start (scope "package") ends with the last of them."""
