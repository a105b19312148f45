//! Scenes that no seed would find, each played once.
