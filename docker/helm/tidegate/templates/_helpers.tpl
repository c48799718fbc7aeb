{{/* What all names begin with: the release, unless it is called as the chart. */}}
{{- define "tidegate.name" -}}
{{- if contains "tidegate" .Release.Name }}{{ .Release.Name | trunc 45 | trimSuffix "-" }}{{ else }}{{ printf "%s-tidegate" (.Release.Name | trunc 36 | trimSuffix "-") }}{{ end }}
{{- end }}

{{- define "tidegate.selector" -}}
app.kubernetes.io/name: tidegate
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "tidegate.labels" -}}
{{ include "tidegate.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "tidegate.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "tidegate.claim" -}}
{{ .Values.state.existingClaim | default (printf "%s-state" (include "tidegate.name" .)) }}
{{- end }}

{{- define "tidegate.catalog" -}}
{{ .Values.catalog.existing | default (printf "%s-catalog" (include "tidegate.name" .)) }}
{{- end }}

{{/* The peers of the flow's cluster, a line each: what BYTEWAX_HOSTFILE_PATH names. */}}
{{- define "tidegate.hosts" -}}
{{- $flow := printf "%s-flow" (include "tidegate.name" .) }}
{{- range $number := until (int .Values.flow.processes) }}
{{ $flow }}-{{ $number }}.{{ $flow }}.{{ $.Release.Namespace }}.svc.{{ $.Values.flow.clusterDomain }}:2101
{{- end }}
{{- end }}

{{- define "tidegate.envFrom" -}}
- configMapRef: {name: {{ include "tidegate.name" . }}}
{{- if .Values.secrets.existing }}
- secretRef: {name: {{ .Values.secrets.existing }}}
{{- else if .Values.secrets.values }}
- secretRef: {name: {{ include "tidegate.name" . }}}
{{- end }}
{{- end }}

{{- define "tidegate.pod" -}}
automountServiceAccountToken: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  fsGroup: 10001
  seccompProfile: {type: RuntimeDefault}
{{- with .Values.image.pullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "tidegate.container" -}}
image: {{ include "tidegate.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
volumeMounts:
  - {name: state, mountPath: /var/lib/tidegate}
  - {name: catalog, mountPath: /etc/tidegate, readOnly: true}
  - {name: tmp, mountPath: /tmp}
envFrom: {{- include "tidegate.envFrom" . | nindent 2 }}
{{- end }}

{{/* The catalog, and the peers, which lie beside it. */}}
{{- define "tidegate.volumes" -}}
- {name: state, persistentVolumeClaim: {claimName: {{ include "tidegate.claim" . }}}}
- name: catalog
  projected:
    sources:
      - configMap: {name: {{ include "tidegate.catalog" . }}}
      - configMap: {name: {{ include "tidegate.name" . }}-hosts}
- {name: tmp, emptyDir: {}}
{{- end }}

{{- define "tidegate.placed" -}}
{{- with .nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* What values.schema.json can't say. */}}
{{- define "tidegate.check" -}}
{{- if gt (int .Values.flow.processes) (int .Values.flow.recoveryParts) }}
{{- fail "flow.processes: there can be no more of them than flow.recoveryParts, which stays as it was at the first start" }}
{{- end }}
{{- range $name := list "source" "ingest" "store" }}
{{- $scheme := index $.Values $name | splitList ":" | first }}
{{- if has $scheme (list "sqlite" "log" "file") }}
{{- fail (printf "%s: %s: is for one machine; pods need redis: and kafka: addresses" $name $scheme) }}
{{- end }}
{{- end }}
{{- if and .Values.serviceMonitor.enabled .Values.serve.enabled (not .Values.serviceMonitor.keySecret.name) }}
{{- fail "serviceMonitor.keySecret.name: is missing; `tidegate keys create prometheus --scope read` makes the key, a Secret holds it" }}
{{- end }}
{{- end }}
