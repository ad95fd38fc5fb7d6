{{/* Names are fixed: pods find the controller by them, and a cluster has one. */}}
{{- define "tailway.name" -}}
tailway-controller
{{- end }}

{{- define "tailway.selector" -}}
app.kubernetes.io/name: tailway
app.kubernetes.io/component: controller
{{- end }}

{{- define "tailway.labels" -}}
{{ include "tailway.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: tailway
{{- end }}

{{- define "tailway.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end }}

{{/* Restricted Pod Security: https://kubernetes.io/docs/concepts/security/pod-security-standards/ */}}
{{- define "tailway.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "tailway.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* The environment of the controller, and of its cleaning up. */}}
{{- define "tailway.environment" -}}
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: POD_NAMESPACE
  valueFrom:
    fieldRef:
      fieldPath: metadata.namespace
- name: TAILWAY_LOG
  value: {{ .Values.log.level | quote }}
- name: TAILWAY_LOG_FORMAT
  value: {{ .Values.log.format | quote }}
- name: TAILWAY_ADMIN_ADDR
  value: 0.0.0.0:9090
- name: TAILWAY_PROXY_IMAGE
  value: {{ include "tailway.image" . | quote }}
{{- with .Values.image.pullPolicy }}
- name: TAILWAY_PROXY_IMAGE_PULL_POLICY
  value: {{ . | quote }}
{{- end }}
{{- with .Values.proxyEnv }}
- name: TAILWAY_PROXY_ENV
  value: {{ $pairs := list }}{{ range $name, $value := . }}{{ $pairs = append $pairs (printf "%s=%s" $name $value) }}{{ end }}{{ $pairs | join "," | quote }}
{{- end }}
{{- if not (has "*" .Values.secretNamespaces) }}
- name: TAILWAY_SECRET_NAMESPACES
  value: {{ .Values.secretNamespaces | default (list .Release.Namespace) | join "," | quote }}
{{- end }}
{{- with .Values.tailnets.apiURL }}
- name: TAILWAY_API_URL
  value: {{ . | quote }}
{{- end }}
{{- with .Values.tailnets.controlURL }}
- name: TS_CONTROL_URL
  value: {{ . | quote }}
{{- end }}
- name: TAILWAY_CLUSTER_DOMAIN
  value: {{ .Values.clusterDomain | quote }}
- name: TAILWAY_REMOVAL_PATIENCE
  value: {{ .Values.removalPatience | quote }}
{{- if .Values.extension.allowLocalTargets }}
- name: TAILWAY_EXTENSION_LOCAL_TARGETS
  value: "true"
{{- end }}
{{- with .Values.env }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "tailway.mounts" -}}
{{- if .Values.workloadIdentity -}}
volumeMounts:
  - name: identity
    mountPath: /var/run/secrets/tailscale
    readOnly: true
{{- end }}
{{- end }}

{{- define "tailway.volumes" -}}
{{- with .Values.workloadIdentity -}}
volumes:
  - name: identity
    projected:
      sources:
        {{- range . }}
        - serviceAccountToken:
            path: {{ .name }}
            audience: {{ .audience | quote }}
            expirationSeconds: 3600
        {{- end }}
{{- end }}
{{- end }}
