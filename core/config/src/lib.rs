//! The configuration file of a DMCE instance.
