package marathon

// table lists every route. Where several match, the first counts.
func (a *API) table() []route {
	on := func(method, pattern string, h handler) route {
		return route{method: method, pattern: pattern, handle: h}
	}
	get := func(pattern string, h handler) route { return on("GET", pattern, h) }
	post := func(pattern string, h handler) route { return on("POST", pattern, h) }
	put := func(pattern string, h handler) route { return on("PUT", pattern, h) }
	patch := func(pattern string, h handler) route { return on("PATCH", pattern, h) }
	del := func(pattern string, h handler) route { return on("DELETE", pattern, h) }
	return append([]route{
		get("/ping", a.ping), get("/metrics", a.metrics), get("/metrics/prometheus", a.prometheus),
		get("/config", refusedRoute("GET /config")), get("/logging", refusedRoute("/logging")), post("/logging", refusedRoute("/logging")),
		get("/v2/info", a.infoGet), get("/v2/leader", a.leaderGet),
		del("/v2/leader", refusedRoute("abdication: the leader is a server of the cluster, and `tutti server demote` takes its vote;")),
		get("/v2/plugins", a.plugins), get("/v2/plugins/{id}", refusedRoute("a plugin")),
		get("/v2/events", a.follow), get("/v2/eventStream", a.follow),
		get("/v2/eventSubscriptions", refusedRoute("an event callback (follow /v2/events)")),
		post("/v2/eventSubscriptions", refusedRoute("an event callback (follow /v2/events)")),
		del("/v2/eventSubscriptions", refusedRoute("an event callback (follow /v2/events)")),

		get("/v2/apps", a.appList), post("/v2/apps", a.appCreate), put("/v2/apps", a.appUpdateMany), patch("/v2/apps", a.appUpdateMany),
		post("/v2/apps/{id}/restart", a.appRestart),
		get("/v2/apps/{id}/tasks", a.appTasks), del("/v2/apps/{id}/tasks", a.appTasksKill), del("/v2/apps/{id}/tasks/{task}", a.appTasksKill),
		get("/v2/apps/{id}/versions", a.appVersions), get("/v2/apps/{id}/versions/{version}", a.appVersion),
		get("/v2/apps/{id}", a.appGet), put("/v2/apps/{id}", a.appUpdate), patch("/v2/apps/{id}", a.appUpdate), del("/v2/apps/{id}", a.appDelete),

		get("/v2/groups/versions", a.groupVersions), get("/v2/groups/versions/{version}", a.groupVersion), put("/v2/groups/versions/{version}", a.groupRollback),
		get("/v2/groups/{id}/versions", a.groupVersions), get("/v2/groups/{id}/versions/{version}", a.groupVersion),
		put("/v2/groups/{id}/versions/{version}", a.groupRollback),
		get("/v2/groups", a.groupGet), post("/v2/groups", a.groupPut), put("/v2/groups", a.groupPut), del("/v2/groups", a.groupDelete),
		get("/v2/groups/{id}", a.groupGet), post("/v2/groups/{id}", a.groupPut), put("/v2/groups/{id}", a.groupPut),
		patch("/v2/groups/{id}", a.groupPatch), del("/v2/groups/{id}", a.groupDelete),

		on("HEAD", "/v2/pods", a.podHead), get("/v2/pods", a.podList), post("/v2/pods", a.podPut), get("/v2/pods/::status", a.podStatuses), get("/v2/pods::status", a.podStatuses),
		get("/v2/pods/{id}::status", a.podStatus), get("/v2/pods/{id}::versions", a.podVersions), get("/v2/pods/{id}::versions/{version}", a.podVersion),
		del("/v2/pods/{id}::instances/{instance}", a.podKill), del("/v2/pods/{id}::instances", a.podKill),
		get("/v2/pods/{id}", a.podGet), put("/v2/pods/{id}", a.podPut), del("/v2/pods/{id}", a.podDelete),

		get("/v2/deployments", a.deploymentList), del("/v2/deployments/{deployment}", a.deploymentCancel),
		get("/v2/tasks", a.taskListAll), post("/v2/tasks/delete", a.taskKillMany),
		get("/v2/queue", a.queue), del("/v2/queue/{id}/delay", a.queueReset),
	}, a.jobTable()...)
}
