"""The networks, and how they are computed: layers, blocks, number formats, meshes, memory."""
