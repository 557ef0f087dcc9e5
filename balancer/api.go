package balancer

import "github.com/rota-lb/rota/balancer/internal/admin"

// The answers of the admin API, for programs that read it.
type (
	// Status is the answer of /api/v1/status.
	Status = admin.Status
	// Service is one service of /api/v1/services.
	Service = admin.Service
	// Instance is one instance of a service.
	Instance = admin.Instance
	// Why is the answer of /api/v1/why.
	Why = admin.Why
	// Stats is the answer of /api/v1/stats.
	Stats = admin.Stats
	// Plan is the answer of /api/v1/plan, Draft what is asked of it.
	Plan = admin.Plan
	// Draft is what /api/v1/plan is asked about.
	Draft = admin.Draft
	// Event is one of /api/v1/events.
	Event = admin.Event
	// Dropped is the answer of DELETE /api/v1/orphans.
	Dropped = admin.Dropped
	// Released is the answer of /api/v1/services/{service}/release.
	Released = admin.Released
	// Routes is the answer of /api/v1/routes.
	Routes = admin.Routes
	// Route is one route of it.
	Route = admin.Route
)
