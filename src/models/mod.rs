//! Networks in the layout of diffusers.
