{{- define "soci.name" -}}
{{- printf "%s" .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "soci.labels" -}}
app.kubernetes.io/name: {{ include "soci.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "soci.selector" -}}
app.kubernetes.io/name: {{ include "soci.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "soci.account" -}}
{{- .Values.serviceAccount.name | default (include "soci.name" .) -}}
{{- end -}}

{{/* The daemon's configuration; empty if the node's own is to be kept. */}}
{{- define "soci.config" -}}
{{- if .Values.metrics.enabled -}}
metrics_address = {{ printf "%s:%d" .Values.metrics.address (int .Values.metrics.port) | quote }}
{{ end -}}
{{- with .Values.config -}}
{{ . }}
{{ end -}}
{{- if .Values.kubeconfigKeychain.enabled -}}
[kubeconfig_keychain]
enable_keychain = true
kubeconfig_path = "/etc/soci-snapshotter-grpc/kubeconfig"
{{ end -}}
{{- end -}}
