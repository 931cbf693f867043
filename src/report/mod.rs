//! Pictures and plots of a run.
