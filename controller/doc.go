// Package controller owns the objects that are made from other objects: one
// reconciler per kind, run by the leader alone.
package controller
