{{- define "shop.database" -}}
- {name: DB_HOST, value: {{ .Release.Name }}-postgres}
- {name: DB_NAME, value: shop}
- {name: DB_USER, value: shop}
- {name: DB_PASSWORD_FILE, value: /run/secrets/database/password}
{{- end }}
{{- define "shop.labels" -}}
app.kubernetes.io/name: {{ .name }}
app.kubernetes.io/instance: {{ .release }}
{{- end }}
{{- define "shop.confined" -}}
{readOnlyRootFilesystem: true, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
{{- end }}
