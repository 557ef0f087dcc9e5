package balancer

import "github.com/rota-lb/rota/balancer/internal/admin"

// MostBroken is the percentage of the requests of late from which on the admin API refuses to write what would break them, unless
// it is forced or told another limit.
const MostBroken = admin.MostBroken

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
	// Conflict is a route of it that never matches, and the one that takes its requests.
	Conflict = admin.Conflict
	// Config is the answer of /api/v1/config.
	Config = admin.Config
	// Readiness is the answer of /readyz.
	Readiness = admin.Readiness
)
