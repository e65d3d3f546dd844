// Package profiles reads the TOML files that say what a session is made of, and resolves them into plans.
//
// A profile is loaded strictly, with the profiles it extends, into a Profile; --set changes single keys of it; Build
// turns it, together with the infrastructure components that display, audio and bus contribute, into a Plan. All of it
// is pure: reading files is the only effect, and every error of a file is reported at once with its place.
package profiles
