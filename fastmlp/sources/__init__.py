"""Raw data sets by index: `source[i] -> (image, label)`."""
